"""The groups of golden vectors and what of the library each is held against, one module per group.

`folder` reads the vectors and remembers what was looked at, `record` keeps the results, `limits` names the tolerances,
`recipes` regenerates networks from a seed. Everything about a case (sizes, seeds, settings) comes from the folder.
"""
