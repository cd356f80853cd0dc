"""Translate texts with the bundle of a translation model, such as NLLB, M2M100, mBART or Marian.

drl-export path/to/nllb-200-distilled-600M build/nllb
python examples/translation/translate.py build/nllb "The cat sleeps." --to fra_Latn
"""

import argparse
import sys
from collections.abc import Sequence

from drl.runtime import DrlError, Engine


def translate(bundle: str, texts: Sequence[str], to: str | None = None) -> list[str]:
    """Return the translations of some texts, into the language of the token `to`."""
    with Engine.from_bundle(bundle) as engine:
        options = {} if to is None else {"forced_bos_token_id": engine.token_id(to)}
        results = engine.generate(texts, engine.configure(**options))
    return [result.text for result in results]


def main() -> None:
    """Print a translation per line."""
    parser = argparse.ArgumentParser(description="Translate texts with a bundle.")
    parser.add_argument("bundle", help="a folder that drl-export has made")
    parser.add_argument("texts", nargs="+", help="what to translate")
    parser.add_argument("--to", help="token of the target language, such as fra_Latn or __fr__")
    arguments = parser.parse_args()
    try:
        print(*translate(arguments.bundle, arguments.texts, arguments.to), sep="\n")
    except DrlError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
