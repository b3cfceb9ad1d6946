"""Asks a Node for the smallest model."""

from node_asker import NodeAsker


class Asker(NodeAsker):
    usual = ("model.name=logistic", "run.rounds=2")
