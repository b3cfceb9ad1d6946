"""FedNova: sites that take more steps do not get more say [1]_.

From x, a site that takes tau_i steps moves by ``eta sum_k a_k g_k``, where a_k counts how often
momentum applies the k-th gradient. The coordinator averages the moves over ``|a_i|_1``, then takes
a step as long as the mean site's (eq. 6):

    x+ = x + (sum_i p_i |a_i|_1) sum_i p_i (y_i - x) / |a_i|_1

Steps follow from the declared patients and the run's settings, so that nothing else need travel.
Where all sites take as many steps it is FedAvg. It takes SGD at a constant rate, with or without
momentum.

References
----------
.. [1] Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated
   optimization", NeurIPS 2020, arXiv 2007.07481.
"""

from collections.abc import Mapping

from flwr.app import Message

from medfusion.strategies.patient_weighted import (
    PatientWeighted,
    Vectors,
    model_of,
    patients_of,
)


class FedNova(PatientWeighted):
    """The coordinator's part, which is all there is."""

    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Average the sites' moves over their effective steps."""
        weights = {name: patients_of(reply) for name, reply in replies.items()}
        answered = sum(weights.values())
        steps = {
            name: effective_steps(
                self.run.training.steps_per_round(patients), self.run.training.momentum
            )
            for name, patients in weights.items()
        }
        mean_steps = sum(weights[name] / answered * steps[name] for name in replies)
        moved = {name: x.copy() for name, x in model.items()}
        for site, reply in replies.items():
            share = mean_steps * weights[site] / answered / steps[site]
            for name, trained in model_of(reply).items():
                moved[name] += share * (trained - model[name])
        return moved


def effective_steps(steps: int, momentum: float) -> float:
    """Return ``|a|_1`` of SGD: how many learning rates a gradient that stays the same moves.

    With momentum rho, gradient k of tau is applied ``(1 - rho^(tau - k)) / (1 - rho)`` times, k
    counting from 0 (section 4 of the paper).
    """
    return float(sum(1 - momentum ** (steps - k) for k in range(steps)) / (1 - momentum))
