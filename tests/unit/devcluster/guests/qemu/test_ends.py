import signal

from app.devcluster.guests.qemu.ends import describe_exit, describe_panic, describe_stall


def test_a_process_that_was_killed_is_told_with_the_usual_reason():
    assert describe_exit(-signal.SIGKILL) == "QEMU was ended by SIGKILL, as the system does when memory runs out"
    assert describe_exit(-signal.SIGSEGV) == "QEMU was ended by SIGSEGV"
    assert describe_exit(1) == "QEMU ended with code 1"


def test_a_panic_is_told_in_the_kernels_words():
    console = "[ 1.0] something\n[ 1.1] Kernel panic - not syncing: Attempted to kill init!\n[ 1.2] CPU: 0\n"
    assert describe_panic(console) == "Kernel panic - not syncing: Attempted to kill init!"
    assert describe_panic("silence") == "see its console."


def test_a_guest_that_stands_still_for_want_of_space_is_told_what_to_do():
    full = describe_stall("web", {"node-name": "root", "nospace": True, "reason": "No space left on device"})
    assert (
        full == "The guest web stands still: no space is left for its disk root. Make room on this host and resume it."
    )
    other = describe_stall("web", {"node-name": "root", "nospace": False, "reason": "Input/output error"})
    assert other == "The guest web stands still: its disk root cannot be written (Input/output error)."
