#!/bin/sh
# Installs Emberpool's guest program and starts it: install.sh [FOLDER OF THE IDENTITY DISK]
#
# cloud-init runs it at the first boot. It can be run again, and with EMBERPOOL_ROOT it prepares the image in that folder.
set -eu
root=${EMBERPOOL_ROOT:-}
from=${1:-$(dirname "$0")}
lib=$root/usr/local/lib/emberpool

mkdir -p "$lib" "$root/etc/emberpool/claimed.d" "$root/etc/emberpool/released.d"
cp "$from/guest.sh" "$lib/guest.sh"
chmod 755 "$lib/guest.sh"

if [ -d "$root/run/systemd/system" ] || [ -d "$root/etc/systemd/system" ]; then
    units=$root/etc/systemd/system
    mkdir -p "$units/multi-user.target.wants"
    cp "$from/emberpool-guest.service" "$units/emberpool-guest.service"
    chmod 644 "$units/emberpool-guest.service"
    ln -sf ../emberpool-guest.service "$units/multi-user.target.wants/emberpool-guest.service"
    if [ -z "$root" ]; then
        systemctl daemon-reload
        systemctl start --no-block emberpool-guest.service
    fi
elif [ -d "$root/etc/init.d" ] && [ -d "$root/etc/runlevels" ]; then
    cp "$from/emberpool-guest.openrc" "$root/etc/init.d/emberpool-guest"
    chmod 755 "$root/etc/init.d/emberpool-guest"
    mkdir -p "$root/etc/runlevels/default"
    ln -sf /etc/init.d/emberpool-guest "$root/etc/runlevels/default/emberpool-guest"
    if [ -z "$root" ]; then
        rc-service emberpool-guest start
    fi
else
    echo "emberpool: neither systemd nor OpenRC is here: $lib/guest.sh has to be started at each boot" >&2
    if [ -z "$root" ]; then
        nohup sh "$lib/guest.sh" >/dev/null 2>&1 &
    fi
fi
