"""Functions from plain arrays and records to matplotlib Figures; the caller decides where a figure goes."""
