"""The definition of a job: one JSON value with all its settings. Loads no torch.

schema.py      the pydantic models: JobSpec and its parts; also reads older specs, lists the stages of a job
beside.py      the shape of the sparse model beside a dense one
limits.py      the largest values that a job may ask for
sizes.py       how many weights a sparse model has, and how many stay nonzero
thresholds.py  task losses near chance and what each decides
unmeasured.py  why a number of a result is missing, in words
story.py       how a circuit works: the claims of a result as sentences
presets.py     tiny, small, paper: the values before any change
fields.py      changes of fields as text, and the list of fields with their meanings

Doors: all.
"""
