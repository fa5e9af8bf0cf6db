"""From scorecards to the champion: rank, gate, registry."""
