"""What features are worth: neighbours that vote, a linear classifier, and how many directions count."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from sightline.training.draws import generator

_TEMPERATURE = 0.07
_FOLDS = 5
_PENALTY = 1e-2


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "q d"] | None,
    labels: Int64[Tensor, " q"] | None,
    neighbours: int,
) -> float:
    """Return the share of pictures whose class the nearest neighbours vote for (Wu et al. 2018).

    Votes weigh ``exp(cosine / 0.07)``.

    Args:
        bank: Features that vote.
        bank_labels: Their classes.
        queries: Features to classify; None classifies the bank, each picture without itself.
        labels: Their classes; None with ``queries``.
        neighbours: How many vote.
    """
    bank = functional.normalize(bank.float(), dim=1)
    alone = queries is None
    asked = bank if queries is None else functional.normalize(queries.float(), dim=1)
    truth = bank_labels if labels is None else labels
    similarity = asked @ bank.mT
    if alone:
        similarity.fill_diagonal_(-torch.inf)
    count = min(neighbours, len(bank) - alone)
    best, nearest = similarity.topk(count, dim=1)
    classes = int(bank_labels.max()) + 1
    votes = torch.zeros(len(asked), classes, device=bank.device)
    votes.scatter_add_(1, bank_labels[nearest], (best / _TEMPERATURE).exp())
    return float((votes.argmax(1) == truth).float().mean())


def linear_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "q d"] | None,
    labels: Int64[Tensor, " q"] | None,
) -> float:
    """Return the share of pictures that a linear classifier gets right.

    Multinomial logistic regression on standardised features, to the minimum; without queries the
    mean of five folds of the bank.
    """
    if queries is not None and labels is not None:
        return _right(bank, bank_labels, queries, labels) / len(labels)
    order = generator(0, "folds").permutation(len(bank))
    right = 0
    for fold in range(_FOLDS):
        out = torch.from_numpy(np.sort(order[fold::_FOLDS]))
        kept = torch.ones(len(bank), dtype=torch.bool)
        kept[out] = False
        right += _right(bank[kept], bank_labels[kept], bank[out], bank_labels[out])
    return right / len(bank)


def _right(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> int:
    mean, std = bank.mean(0), bank.std(0).clamp(min=1e-6)
    bank, queries = (bank - mean) / std, (queries - mean) / std
    classes = int(torch.cat([bank_labels, labels]).max()) + 1
    with torch.enable_grad():
        weight = torch.zeros(classes, bank.shape[1] + 1, requires_grad=True, device=bank.device)
        solver = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            logits = functional.linear(bank, weight[:, :-1], weight[:, -1])
            value = functional.cross_entropy(logits, bank_labels)
            value = value + 0.5 * _PENALTY * weight[:, :-1].square().sum()
            value.backward()
            return value

        solver.step(loss)  # pyright: ignore[reportArgumentType]
    logits = functional.linear(queries, weight[:, :-1].detach(), weight[:, -1].detach())
    return int((logits.argmax(1) == labels).sum())


def effective_rank(features: Float[Tensor, "n d"]) -> float:
    """Return how many directions the features use: the exponential of their spectrum's entropy.

    RankMe (Garrido et al. 2023); 1 means collapse. Needs no labels.
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(0))
    share = values / values.sum().clamp(min=1e-12) + 1e-12
    return float((-(share * share.log()).sum()).exp())
