"""The tests. What pytest runs is run with its shapes checked; this is imported before anything of the package is."""

import sys

if "pytest" in sys.modules:
    from tests import shapes

    shapes.install()
