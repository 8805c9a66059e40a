"""Zstandard: in the standard library from Python 3.14 on, before that its backport, which has the same interface."""

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError, ZstdFile, compress, decompress
else:
    from backports.zstd import ZstdError, ZstdFile, compress, decompress

__all__ = ["ZstdError", "ZstdFile", "compress", "decompress"]
