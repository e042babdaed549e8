"""Records that Redis keeps: dead letters, pictures under review, outcomes and the state of
queues.
"""
