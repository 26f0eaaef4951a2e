"""What a job costs before it starts. Loads no torch at import.

bridging.py   parameters, memory and operations of a bridging;  text.py: the same in words
memory.py     bytes a job needs, by which workers choose;  hardware.py: memory available, measured speed
units.py      counts, bytes and seconds for people
"""
