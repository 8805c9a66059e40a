#!/bin/sh
# Emberpool's program in a guest. It says hello to the service, waits for a claim, and runs the guest's hooks with it:
#
#   /etc/emberpool/claimed.d/*    each executable in order, once the VM is claimed, with the claim as JSON on its standard input
#   /etc/emberpool/released.d/*   likewise, when the claim has ended and the VM is about to be removed
#   /run/emberpool/claim.json     the claim, and /run/emberpool/claim.env the same as variables of a shell
#
# It needs a POSIX shell and curl or wget, opens no port, and uses no clock: an hour off does no harm. Its identity is read from
# the disk with the label EMBERPOOL at each start, so that a copy of this guest's disk is not taken for this guest.
#
# EMBERPOOL_ROOT is a folder that stands for /, for tests and images. EMBERPOOL_HOOK_SECONDS bounds each hook.
set -u
umask 077
root=${EMBERPOOL_ROOT:-}
run=$root/run/emberpool
hooks=$root/etc/emberpool
disk=$run/disk
work=$run/work
limit=${EMBERPOOL_HOOK_SECONDS:-300}
boot_id=${EMBERPOOL_BOOT_ID:-$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)}
nap_most=2
known=
lease=

say() {
    printf 'emberpool: %s\n' "$*" >&2
}

open_disk() {
    mkdir -p "$disk" "$work" || exit 1
    [ -r "$disk/token" ] || mount -o ro LABEL=EMBERPOOL "$disk" 2>/dev/null ||
        mount -o ro /dev/disk/by-label/EMBERPOOL "$disk" 2>/dev/null
    if [ ! -r "$disk/token" ]; then
        say "no disk with the label EMBERPOOL: this VM has no channel to a service"
        exit 1
    fi
    url=$(cat "$disk/url")
    # In a file, because everybody can read the arguments of a program that runs.
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$disk/token")" >"$work/curl"
    printf 'header = Authorization: Bearer %s\n' "$(cat "$disk/token")" >"$work/wget"
    if [ -r "$disk/ca.crt" ]; then
        printf 'cacert = "%s"\n' "$disk/ca.crt" >>"$work/curl"
        printf 'ca_certificate = %s\n' "$disk/ca.crt" >>"$work/wget"
    fi
}

# Sleeps for 1 to $nap_most seconds, and longer each time, so that all guests of a service that comes back do not come at once.
nap() {
    sleep $(($(od -An -N2 -tu2 /dev/urandom) % nap_most + 1))
    [ "$nap_most" -ge 8 ] || nap_most=$((nap_most * 2))
}

# ask NAME PATH [FILE TYPE]: prints the status of the answer, and 000 where there was none; its body is in $work/NAME. With a file
# the request is a POST.
ask() {
    if command -v curl >/dev/null 2>&1; then
        ask_curl "$@"
    else
        ask_wget "$@"
    fi
}

ask_curl() {
    ask_to=$work/$1
    ask_url=$url$2
    shift 2
    [ $# -eq 0 ] || set -- --data-binary "@$1" -H "Content-Type: $2"
    curl -s -K "$work/curl" -m 75 -o "$ask_to" -w '%{http_code}' "$@" "$ask_url" || :
}

ask_wget() {
    ask_to=$work/$1
    ask_url=$url$2
    ask_heads=$ask_to.heads
    shift 2
    if [ $# -ne 0 ]; then
        ask_body=$(cat "$1" && printf .) # the dot keeps what a substitution would cut: newlines at the end
        set -- --header "Content-Type: $2" --post-data "${ask_body%.}"
    fi
    if wget --help 2>&1 | grep -q -- '--config='; then
        wget --config="$work/wget" --content-on-error -t 1 -T 75 -S -O "$ask_to" "$@" "$ask_url" 2>"$ask_heads"
    else
        # That of busybox. Its -T ends it with a fault of its own (1.35), so that only the service ends the wait.
        wget --header "Authorization: Bearer $(cat "$disk/token")" -S -O "$ask_to" "$@" "$ask_url" 2>"$ask_heads"
    fi
    ask_status=$(sed -n 's/.*HTTP\/1\.[01] \([0-9][0-9][0-9]\).*/\1/p' "$ask_heads" | tail -n 1)
    printf '%s' "${ask_status:-000}"
}

# member NAME: that variable of the answer to the last look for a claim.
member() {
    sed -n "/^\$/q; s/^$1='\(.*\)'\$/\1/p" "$work/claim"
}

# Ends where the service says that this guest will never be served. Anything else may pass.
give_up_if_final() {
    case $1 in
    401 | 403 | 404 | 410)
        say "the service refuses this guest ($1): $(head -c 500 "$work/$2" 2>/dev/null)"
        exit 1
        ;;
    409)
        say "another guest has taken this one's place: $(head -c 500 "$work/$2" 2>/dev/null)"
        exit 1
        ;;
    esac
}

hello() {
    printf '{"boot_id": "%s", "vm": "%s"}' "$boot_id" "$(cat "$disk/vm")" >"$work/greeting"
    while :; do
        status=$(ask hello /guest/v1/hello "$work/greeting" application/json)
        [ "$status" != 200 ] || break
        give_up_if_final "$status" hello
        nap
    done
    nap_most=2
}

# run_hooks FOLDER: runs its executables one after another, until one fails. What they print goes to standard output.
run_hooks() {
    for hook in "$hooks/$1"/*; do
        if [ -f "$hook" ] && [ -x "$hook" ]; then
            (
                set -a
                # shellcheck source=/dev/null
                . "$run/claim.env"
                set +a
                if command -v timeout >/dev/null 2>&1; then
                    exec timeout "$limit" "$hook"
                fi
                exec "$hook"
            ) <"$run/claim.json" || return
        fi
    done
}

# collect FILE: keeps the first 4 KiB of its input and reads the rest away, so that a hook that prints more goes on.
collect() {
    dd bs=1 count=4096 of="$1" 2>/dev/null
    cat >/dev/null
}

# take_over ID: runs the hooks for a claim and tells the service how they ended. A process that a hook leaves behind may keep its
# output open, so nobody waits for the end of that.
take_over() {
    rm -f "$work/pipe" "$work/output"
    mkfifo "$work/pipe"
    collect "$work/output" <"$work/pipe" &
    collecting=$!
    run_hooks claimed.d >"$work/pipe" 2>&1
    exit_code=$?
    tries=0
    while kill -0 "$collecting" 2>/dev/null && [ "$tries" -lt 2 ]; do
        sleep 1
        tries=$((tries + 1))
    done
    say "the hooks have run for claim $1 (exit code $exit_code)"
    report "/guest/v1/handed-over?claim=$1&exit_code=$exit_code" "$work/output"
}

# report PATH FILE: until the service has it, or does not want it.
report() {
    [ -e "$2" ] || : >"$2"
    while :; do
        told=$(ask report "$1" "$2" text/plain)
        case $told in
        2?? | 4??) return ;;
        esac
        nap
    done
}

# begin ID: hands the claim in the answer over to the hooks, once: also where this program was started anew meanwhile.
begin() {
    known=$1
    if [ "$(cat "$run/begun" 2>/dev/null)" = "$1 $boot_id" ]; then
        printf 'the guest program was started anew while the hooks ran\n' >"$work/again"
        report "/guest/v1/handed-over?claim=$1&exit_code=130" "$work/again"
        return
    fi
    keep
    printf '%s %s\n' "$1" "$boot_id" >"$run/begun"
    say "claim $1: the hooks begin"
    take_over "$1" &
}

# Writes the claim where hooks and jobs find it.
keep() {
    lease=$(member EMBERPOOL_LEASE)
    sed '/^$/,$d' "$work/claim" >"$run/claim.env.new"
    sed '1,/^$/d' "$work/claim" >"$run/claim.json.new"
    mv "$run/claim.env.new" "$run/claim.env"
    mv "$run/claim.json.new" "$run/claim.json"
}

finish() {
    say "claim $1 has ended; the VM goes in $(member EMBERPOOL_SECONDS) s"
    run_hooks released.d >&2
    : >"$work/nothing"
    report "/guest/v1/released?claim=$1" "$work/nothing"
}

listen() {
    while :; do
        status=$(ask claim "/guest/v1/claim?form=shell&boot_id=$boot_id&known=$known&lease=$lease")
        case $status in
        200)
            nap_most=2
            claim=$(member EMBERPOOL_CLAIM)
            case $(member EMBERPOOL_EVENT) in
            claimed) begin "$claim" ;;
            renewed) keep ;;
            releasing)
                finish "$claim"
                exit 0
                ;;
            esac
            ;;
        204) nap_most=2 ;;
        *)
            give_up_if_final "$status" claim
            nap
            ;;
        esac
    done
}

open_disk
hello
say "waits for a claim"
listen
