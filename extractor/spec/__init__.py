"""What a job is: one JSON value that holds every number that shapes it. Loads no torch.

schema.py    the pydantic models: JobSpec and its parts, the stages of a job, reading of older specs
sizes.py     how many weights a sparse model has, and how many stay nonzero
presets.py   tiny, small, paper: the values a job starts from
fields.py    dotted field -> text changes over a preset, and the list of fields with their meaning

Doors: all four.
"""
