"""A small dual-router model that reads and writes numbers, and the code that trained it.

`language` and `tasks` make the data, `tokens` the tokenizer, `train` the model, `evaluate` its
measured figures.
"""
