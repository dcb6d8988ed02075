"""ProS (CVPR 2024): prompt tuning of CLIP for universal cross-domain retrieval, taught, implemented and measured.

`__init__.pyi` lists the public names. Each is imported when it is first used: PyTorch alone takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
