"""A step is never silent for long."""

import time

from steps import output


def test_a_silent_step_prints_what_it_is_doing(monkeypatch, capsys):
    monkeypatch.setattr(output, "LONGEST_SILENCE", 0.2)
    with output.signs_of_life(), output.activity("building"), output.activity("timing b, 3 of 8"):
        with output.suppress_output():
            print("a library's chatter")
            time.sleep(0.9)
        output.echo("Built it")
    printed = capsys.readouterr().out
    assert "… timing b, 3 of 8 (0 s so far)\n" in printed
    assert "chatter" not in printed
    assert printed.endswith("Built it\n")
