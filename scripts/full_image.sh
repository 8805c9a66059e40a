#!/usr/bin/env bash
# Make a full disk image of Debian with a bootloader and cloud-init, as the cloud images are, out of packages alone: for measuring
# guests that boot by firmware where no cloud image can be downloaded. Needs root, and some minutes:
#     apt-get install mmdebstrap syslinux syslinux-common mtools dosfstools fdisk e2fsprogs qemu-utils
# Nothing is mounted: the boot partition is FAT with syslinux on it, the root a file system that mke2fs fills from a folder.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 IMAGE.qcow2    (the environment's SUITE, by default the host's, is what is installed)" >&2; exit 2; }
for program in mmdebstrap syslinux mcopy mkfs.vfat sfdisk mke2fs qemu-img; do
    command -v "$program" > /dev/null || { echo "$program is missing: see the first lines of $0 for what to install" >&2; exit 1; }
done
target=$(realpath -m "$1")
suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
work=$(mktemp -d "$(dirname "$target")/.full-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

packages=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,systemd-resolved,udev,dbus,netplan.io,iproute2,cloud-init,openssh-server,sudo,qemu-guest-agent
# The host's own list of sources is used, whatever mirror it names.
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null || true)
printf '%s\n' "$sources" | mmdebstrap --mode=root --variant=minbase --include="$packages" \
    --customize-hook='printf "LABEL=root / ext4 defaults 0 1\n" > "$1/etc/fstab"' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; : > "$1/etc/machine-id"' \
    --customize-hook='printf "datasource_list: [NoCloud, ConfigDrive, None]\nlocale: false\n" > "$1/etc/cloud/cloud.cfg.d/90_sources.cfg"' \
    "$suite" "$work/tree"

mib=$((1024 * 1024))
boot_at=1 boot_size=127 root_at=128 root_size=1792
truncate -s $(((root_at + root_size + 1) * mib)) "$work/disk"
printf 'label: dos\nstart=%dMiB, size=%dMiB, type=c, bootable\nstart=%dMiB, size=%dMiB, type=83\n' \
    $boot_at $boot_size $root_at $root_size | sfdisk --quiet "$work/disk"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk" bs=440 count=1 conv=notrunc status=none

truncate -s $((boot_size * mib)) "$work/boot"
mkfs.vfat -F 32 -n BOOT -h $((boot_at * 2048)) "$work/boot" > /dev/null
cat > "$work/syslinux.cfg" << 'END'
default linux
label linux
    kernel vmlinuz
    initrd initrd
    append root=LABEL=root ro console=ttyS0 net.ifnames=0
END
mcopy -i "$work/boot" "$work"/tree/boot/vmlinuz-* ::vmlinuz
mcopy -i "$work/boot" "$work"/tree/boot/initrd.img-* ::initrd
mcopy -i "$work/boot" "$work/syslinux.cfg" ::syslinux.cfg
syslinux --install "$work/boot"
dd if="$work/boot" of="$work/disk" bs=1M seek=$boot_at conv=notrunc,sparse status=none

mke2fs -q -t ext4 -L root -d "$work/tree" -E offset=$((root_at * mib)) "$work/disk" ${root_size}M
qemu-img convert -f raw -O qcow2 -c "$work/disk" "$work/image.qcow2"
mv "$work/image.qcow2" "$target"
echo "made $target of $suite: $(stat -c %s "$target") bytes"
