"""The rules behind `GenerationConfig`.

`checks` looks at one value at a time, `rules` at what contradicts what, `defaults` puts options
over a bundle's, `names` helps with the names of other libraries.
"""
