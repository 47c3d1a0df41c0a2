"""Whether this machine can train and predict, and what to do where it cannot.

``probe`` looks once and returns ``Facts``; ``examine`` judges them and computes nothing else, so any machine
can be made up for a test.
"""
