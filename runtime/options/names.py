"""Names of generation options that others know and this runtime does not, and what to use here."""

from collections.abc import Collection, Mapping

from drl.runtime.errors import nearest_name

_BUNDLE = "the bundle says it"
_RESULTS = "results always tell what they can"
_ASSISTED = "there is no assisted generation here"
_CACHE = "the engine always keeps its own cache"
_COMPILE = "a bundle is compiled when it is exported"
_ARGUMENT = "an argument beside the options, not one of them"
_FILE = "drl-export reads a folder's generation_config.json into the bundle"
_FIXED = "there is no constrained beam search; give json_schema, regex or grammar"

# Of transformers first, then of other libraries. Each is one clause.
_HINTS: Mapping[str, str] = {
    "eos_token_id": f"{_BUNDLE}; for further ones use stop_token_ids",
    "bos_token_id": _BUNDLE,
    "pad_token_id": _BUNDLE,
    "decoder_start_token_id": _BUNDLE,
    "decoder_input_ids": "give the tokens as the request's prefix",
    "logits_processor": "give processors=[...] beside the options",
    "prefix_allowed_tokens_fn": "give a LogitsProcessor as processors=[...] beside the options",
    "stopping_criteria": "use stop_strings, stop_token_ids or max_time, or cancel the request",
    "streamer": "call engine.stream",
    "constraints": _FIXED,
    "force_words_ids": _FIXED,
    "guidance_scale": "there is no classifier-free guidance here",
    "negative_prompt_ids": "there is no classifier-free guidance here",
    "penalty_alpha": "there is no contrastive search here",
    "dola_layers": "there is no DoLa decoding here",
    "top_h": "there is no top-H filter here; use top_p, min_p or typical_p",
    "watermarking_config": "there is no watermarking here; give a LogitsProcessor",
    "token_healing": "there is no token healing here",
    "assistant_model": _ASSISTED,
    "num_assistant_tokens": _ASSISTED,
    "num_assistant_tokens_schedule": _ASSISTED,
    "assistant_confidence_threshold": _ASSISTED,
    "assistant_early_exit": _ASSISTED,
    "prompt_lookup_num_tokens": _ASSISTED,
    "max_matching_ngram_size": _ASSISTED,
    "use_cache": _CACHE,
    "cache_implementation": _CACHE,
    "cache_config": _CACHE,
    "max_cache_len": _CACHE,
    "past_key_values": _CACHE,
    "compile_config": _COMPILE,
    "disable_compile": _COMPILE,
    "output_scores": "use logprobs and top_logprobs",
    "output_logits": "use logprobs and top_logprobs",
    "output_attentions": "a bundle does not give them",
    "output_hidden_states": "a bundle does not give them",
    "return_dict_in_generate": _RESULTS,
    "inputs": "give the prompts beside the options",
    "input_ids": "give the prompts beside the options",
    "attention_mask": "prompts have no padding here",
    "prompt": _ARGUMENT,
    "prompts": _ARGUMENT,
    "prefix": _ARGUMENT,
    "prefixes": _ARGUMENT,
    "processors": _ARGUMENT,
    "path": _ARGUMENT,
    "budget": _ARGUMENT,
    "return_experts": _ARGUMENT,
    "cancel": _ARGUMENT,
    "transformers_version": _FILE,
    "_from_model_config": _FILE,
    "n": "use num_return_sequences",
    "num_hypotheses": "use num_return_sequences",
    "best_of": "use num_beams or num_return_sequences",
    "beam_size": "use num_beams",
    "beam_width": "use num_beams",
    "use_beam_search": "use num_beams",
    "patience": "use early_stopping",
    "stop": "use stop_strings",
    "end_token": "use stop_token_ids",
    "bad_words": "use bad_words_ids",
    "allowed_token_ids": "give a LogitsProcessor as processors=[...] beside the options",
    "logit_bias": "use sequence_bias",
    "presence_penalty": "use repetition_penalty",
    "frequency_penalty": "use repetition_penalty",
    "no_repeat_ngram": "use no_repeat_ngram_size",
    "max_decoding_length": "use max_new_tokens",
    "min_decoding_length": "use min_new_tokens",
    "sampling_temperature": "use temperature",
    "sampling_topk": "use top_k",
    "sampling_topp": "use top_p",
    "target_prefix": "give it as the request's prefix",
    "guided_json": "use json_schema",
    "guided_regex": "use regex",
    "guided_grammar": "use grammar",
    "response_format": "use json_schema",
    "timeout": "use max_time",
    "random_seed": "use seed",
}


def unknown_option(name: object, known: Collection[str]) -> str:
    """An unknown option as messages show it: what to use here, or the nearest known name."""
    hint = _HINTS.get(name) if isinstance(name, str) else None
    if hint is None:
        nearest = nearest_name(str(name), known)
        hint = f"did you mean {nearest!r}?" if nearest else None
    return f"{name!r}" + (f" ({hint})" if hint else "")
