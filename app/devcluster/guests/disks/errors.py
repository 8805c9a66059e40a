"""What can go wrong with a disk:

DiskError            a sentence that says what and where
├── QemuImgMissing   the program is not installed
├── DiskMissing      there is no such volume or layer
├── DiskBusy         somebody has it open; it can be tried again
├── DiskTooSmall     the image does not fit into the disk
├── ImageRefused     the image is none that can be a disk
└── NoSpace          the file system that has the disks is full
"""


class DiskError(Exception):
    pass


class QemuImgMissing(DiskError):
    def __init__(self) -> None:
        super().__init__(
            "the program qemu-img was not found: install qemu-utils (Debian, Ubuntu), qemu-img (Fedora) or qemu (Homebrew)"
        )


class DiskMissing(DiskError):
    pass


class DiskBusy(DiskError):
    pass


class DiskTooSmall(DiskError):
    """Both in bytes."""

    def __init__(self, image: int, disk: int) -> None:
        super().__init__(f"the image has {image} bytes and does not fit into a disk of {disk}: ask for a larger disk")
        self.image = image
        self.disk = disk


class ImageRefused(DiskError):
    pass


class NoSpace(DiskError):
    pass
