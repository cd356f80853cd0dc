"""The runtime's commands: `drl-generate`, `drl-doctor` and `drl-inspect`, a module each.

`common` holds what all of DRL's commands share: how errors end them, how numbers are written.
"""
