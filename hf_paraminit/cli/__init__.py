"""The command line `paraminit`, also `python -m hf_paraminit`.

Each verb is one file of this package. Adding a verb means adding a file that defines two functions, nothing else:

    \"\"\"One line for the list of verbs in `paraminit --help`.\"\"\"

    def add_parser(subparsers: Subparsers) -> None:
        verb_parser(subparsers, "name", __doc__, examples="...").add_argument(...)

    def run(arguments: argparse.Namespace) -> None:
        ...  # parse, call, print

A verb of several parts (`paraminit train METHOD`) is a folder: its `__init__.py` has the docstring and an `add_parser`
that calls `add_parts`, and each part is a file like a verb's. The file's name is the verb (`_` for `-`). A file is
imported only when its verb is chosen, so it may import what it needs at the top; files without `add_parser` are parts
that verbs share. A verb raises `ParamInitError` for everything that a user can cause: `main` prints the message on one
line and exits with 1. Mistakes in the arguments themselves go through `argparse` and exit with 2. Standard output
carries the result only; with `--json` it is one JSON document.
"""
