import pytest

from fedmoe_app.launch.log_filter import LogFilter


def readable(*raw: str) -> list[str]:
    keep = LogFilter()
    return [line for text in raw if (line := keep(text + "\n")) is not None]


def test_noise_of_flower_and_ray_is_dropped() -> None:
    assert not readable(
        "Using SuperLink: own (127.0.0.1:28431)",
        "Successfully started run 8955547841643015746",
        "\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `8955547841643015746`",
        "\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed ...",
        "\x1b[92mINFO \x1b[0m:      \tflwr federation simulation-config @none/default <superlink>",
        "/x/ray/_private/worker.py:2051: FutureWarning: Tip: In future versions of Ray, Ray ...",
        "  warnings.warn(",
        "\x1b[36m(ClientAppActor pid=4988)\x1b[0m \x1b[93mWARNING \x1b[0m:   Manually "
        "terminating ClientAppActor",
        "\x1b[92mINFO \x1b[0m:      ",
        "",
    )


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("plain", "plain"),
        ("  [1/8] client 3: 20 examples", "  [1/8] client 3: 20 examples"),
        ("\x1b[92mINFO \x1b[0m:      round 1/2", "round 1/2"),
        ("\x1b[93mWARNING \x1b[0m:   slow", "warning: slow"),
        ("\x1b[91mERROR \x1b[0m:     broken", "error: broken"),
        ("\x1b[36m(ClientAppActor pid=7)\x1b[0m trained", "trained"),
        ("(ClientAppActor pid=7, ip=10.0.0.2) trained", "trained"),
    ],
)
def test_the_rest_is_kept(raw: str, line: str) -> None:
    assert readable(raw) == [line]


def test_a_traceback_shrinks_to_its_last_line() -> None:
    assert readable(
        "before",
        "\x1b[36m(ClientAppActor pid=7)\x1b[0m Traceback (most recent call last):",
        '\x1b[36m(ClientAppActor pid=7)\x1b[0m   File "a.py", line 1, in f',
        "    raise ValueError(1)",
        "",
        "ValueError: 1",
        "  after",
    ) == ["before", "ValueError: 1", "  after"]


def test_the_dump_of_a_clients_exception_is_dropped_up_to_our_next_line() -> None:
    assert readable(
        "21:00:00 round 1/2: 3 clients train",
        "\x1b[91mERROR \x1b[0m:     An exception was raised when processing a message by Ray",
        "\x1b[91mERROR \x1b[0m:     ray::ClientAppActor.run() (pid=7)",
        '  File "a.py", line 1, in f',
        "ValueError: too few",
        "The above exception was the direct cause of the following exception:",
        "\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):",
        "Exception ClientAppException occurred. Message: client 1: too few",
        "21:00:01   client 1 failed: too few",
    ) == ["21:00:00 round 1/2: 3 clients train", "21:00:01   client 1 failed: too few"]


def test_what_is_said_of_a_data_file_stands_there_once() -> None:
    """Four clients read the same file."""
    dropped = '/a/train.csv: dropped 2 of 330 rows, which are empty in "text" (the first is row 11)'
    others = '/a/test.csv: dropped 1 of 70 rows, which are empty in "text" (the first is row 3)'
    raw = [dropped, f"(ClientAppActor pid=7) {dropped}", others, dropped, "plain", "plain"]
    assert readable(*raw) == [dropped, others, "plain", "plain"]


def test_why_a_run_gave_up_stands_there_once() -> None:
    reason = "2 round(s) in a row failed"
    after = [
        "\x1b[91mERROR \x1b[0m:     ServerApp raised an exception",
        "Traceback (most recent call last):",
        '  File "rounds.py", line 101, in run',
        f"fedmoe_app.server.rounds.RunFailedError: {reason}",
        "An unhandled exception occurred in the ServerApp.",
    ]
    ours = f"14:46:06 failed after round 2 of 3: {reason}"
    assert readable(ours, *after) == [ours]
    # Without a line of our own Flower's are all that there is.
    assert readable(*after) == [
        "error: ServerApp raised an exception",
        f"fedmoe_app.server.rounds.RunFailedError: {reason}",
        "An unhandled exception occurred in the ServerApp.",
    ]
