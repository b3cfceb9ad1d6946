"""The link: carries messages between the coordinator and the Node; a program of its own.

It takes the place of Flower's SuperNode, speaks the same Fleet API, and differs in what matters
here: it neither fetches nor runs the bundle that a coordinator ships, so no code from outside
runs at a hospital; it keeps every message on disk until it is dealt with; and it starts no new
process for a message.
"""
