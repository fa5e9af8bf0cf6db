"""From scorecards to the champion: read the candidates, rank them, decide, register, smoke-test, move the alias."""
