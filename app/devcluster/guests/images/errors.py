"""What can go wrong with an image or a guest. Each text is a sentence for the person who started the dev cluster, or for a condition of a volume."""


class ImageError(Exception):
    """Root of the errors of this package; `str(error)` is the whole sentence."""


class GuestUnavailable(ImageError):
    """The built-in guest cannot be made on this machine."""


class PackagesUnavailable(GuestUnavailable):
    """The host's package manager does not know a package, or cannot get it."""


class FetchFailed(ImageError):
    """An image could not be had from where it was said to be, or it is not an image that may be used. The words are CDI's where it has some.

    `pull` tells that a registry would not give the image; `no_space` that the disk of this machine, or the space given, is full.
    """

    def __init__(self, message: str, *, pull: bool = False, no_space: bool = False) -> None:
        super().__init__(message)
        self.pull = pull
        self.no_space = no_space


class SeedRefused(ImageError):
    """A volume's files cannot be made into an image."""
