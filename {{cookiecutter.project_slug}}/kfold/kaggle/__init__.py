"""What goes to Kaggle and comes from there, in the order in which a person needs it.

command, download: Kaggle's own command. contents, wheel, metadata, notebook, hand_over: what is taken there. inputs,
repository, budget, hidden_rows: inside of a notebook, without internet.
"""
