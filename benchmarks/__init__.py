"""Speed and memory, one script per subject: `python -m benchmarks.init`, `.graphs`, `.xl`.

Every figure of speed is a ratio of times measured in turns within one process, since absolute times on shared machines
do not repeat.
"""
