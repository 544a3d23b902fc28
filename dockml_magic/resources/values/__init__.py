# -*- coding: utf-8 -*-
"""Values between environments: what a value is on the wire, and back.

Runs on both sides: in the notebook's own kernel as ``dockml_magic.resources.values``, inside
containers as ``dockml_values``. Standard library only, Python 2.7 to the newest; NumPy, pandas, SciPy,
torch, TensorFlow and PIL are touched only where they are loaded already (who sends) or where
what arrives needs them (who receives). Nothing that arrives is ever executed.

The format is written down in CONTRIBUTING.md, "Values on the wire".
"""

from __future__ import absolute_import, division, print_function, unicode_literals

from .wire import Damaged, Packed, Refused, Unpacked, pack, unpack

__all__ = ["Damaged", "Packed", "Refused", "Unpacked", "pack", "unpack"]
