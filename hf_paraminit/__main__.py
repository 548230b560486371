"""`python -m hf_paraminit` is the same as `paraminit`."""

import sys

from hf_paraminit.cli.main import main

sys.exit(main())
