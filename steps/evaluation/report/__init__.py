"""What people look at after an evaluation.

state.py: tags that mark a finished report; an interrupted one is finished by the next evaluation.
variant_report.py: speed, traces and a page for one variant.
comparison.py: tables and pictures of all variants on the evaluation's run.
leaderboard.py: the table that the main job prints.
"""
