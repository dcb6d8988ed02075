"""ProS (CVPR 2024): prompt tuning of CLIP for universal cross-domain retrieval, taught, implemented and measured."""
