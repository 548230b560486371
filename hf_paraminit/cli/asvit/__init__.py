"""Search, grow and score vision transformers without training them (As-ViT, ICLR 2022)."""

import sys

from hf_paraminit.cli.arguments import Subparsers, add_parts, verb_parser

EXAMPLES = """
paraminit asvit search --rewards exp --img-size 64 --steps 100 --output search
paraminit asvit grow --arch "8,2,3|4,1,2|4,1,4|4,1,6|32" --img-size 64 --output growth
paraminit asvit score resnet18 vit_tiny_patch16_224
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "asvit", __doc__, examples=EXAMPLES)
    add_parts(parser, sys.modules[__name__], metavar="PART")
