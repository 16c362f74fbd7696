"""Destination-Oriented Navigator (HOSER, section 4.3): scores and travel times of the candidates."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, NextSteps, Prediction
from models.config import NavigatorConfig
from models.thread_count import linear_to_one, product

TIME_WIDTH = 64


class Navigator(nn.Module):
    """Additive attention over candidates, and a time head.

    Both are sums over their inputs before the nonlinearity, so that what depends on the road alone is
    computed once for each road, and what depends on the step alone once for each step:

        k_proj(cat(road, distance_proj(d), angle_proj(a))) = K_r road + d u + a v + const
        linear_3(gelu(cat(linear_1(step), linear_2(road)))) = f(step) + g(road)
    """

    def __init__(self, config: NavigatorConfig):
        super().__init__()
        h = config.hidden_dim
        self.metric_distance_proj = nn.Linear(1, h)
        self.metric_angle_proj = nn.Linear(1, h)
        self.q_proj = nn.Linear(3 * h, h, bias=False)
        self.k_proj = nn.Linear(3 * h, h, bias=False)
        self.v_proj = nn.Linear(h, 1, bias=False)
        self.time_estimator_linear_1 = nn.Linear(2 * h, TIME_WIDTH)
        self.time_estimator_linear_2 = nn.Linear(h, TIME_WIDTH)
        self.time_estimator_linear_3 = nn.Linear(2 * TIME_WIDTH, 1)

    def forward(
        self,
        trajectory_embedding: Tensor,
        destination_zone_embedding: Tensor,
        road_embedding: Tensor,
        candidate_row: Tensor,
        batch: Batch,
    ) -> Prediction:
        """Scores and times of the candidates.

        Args:
            trajectory_embedding: [S, 2h].
            destination_zone_embedding: [B, h], of each trip's destination.
            road_embedding: [n, h], of all roads that are candidates.
            candidate_row: [K], row of each candidate in `road_embedding`.
            batch: which step and trip each candidate belongs to, and its two metrics: the extra distance to the
                destination and the angle to its direction.
        """
        q = self.query(trajectory_embedding)
        q = q + self.destination_query(destination_zone_embedding).index_select(0, batch.trip_of_step)
        logits = self.scores(q, self.road_key(road_embedding), candidate_row, batch)
        of_step, of_road = self.step_time(trajectory_embedding), self.road_time(road_embedding)
        time_pred = of_step.index_select(0, batch.step_of_candidate) + of_road.index_select(0, candidate_row)
        return Prediction(logits, time_pred)

    def query(self, trajectory: Tensor) -> Tensor:
        """The query's summand of each step: [S, 2h] -> [S, h]."""
        return F.linear(trajectory, self.q_proj.weight[:, : trajectory.shape[1]])

    def destination_query(self, destination_zone: Tensor) -> Tensor:
        """The query's summand of each destination: embeddings of zones [n, h] -> [n, h]."""
        return product(destination_zone, self.q_proj.weight[:, 2 * destination_zone.shape[1] :].T)

    def road_key(self, road: Tensor) -> Tensor:
        """The key's summand of each road, and what is constant in it: [n, h] -> [n, h]."""
        k_road, k_distance, k_angle = self.k_proj.weight.split(road.shape[1], dim=1)
        constant = k_distance @ self.metric_distance_proj.bias + k_angle @ self.metric_angle_proj.bias
        return F.linear(road, k_road) + constant

    def scores(self, q: Tensor, road_key: Tensor, candidate_row: Tensor, batch: Batch | NextSteps) -> Tensor:
        """Scores of the candidates [K] from the queries of the steps [S, h] and the keys of roads [n, h]."""
        _, k_distance, k_angle = self.k_proj.weight.split(q.shape[1], dim=1)
        hidden = q.index_select(0, batch.step_of_candidate) + road_key.index_select(0, candidate_row)
        hidden = hidden + batch.metric_distance.unsqueeze(1) * (k_distance @ self.metric_distance_proj.weight).T
        hidden = hidden + batch.metric_angle.unsqueeze(1) * (k_angle @ self.metric_angle_proj.weight).T
        return self.v_proj(hidden.tanh()).squeeze(1)

    def step_time(self, trajectory: Tensor) -> Tensor:
        """The time head's summand of each step: [S, 2h] -> [S]."""
        weight = self.time_estimator_linear_3.weight[:, :TIME_WIDTH]
        hidden = F.gelu(self.time_estimator_linear_1(trajectory))
        return linear_to_one(hidden, weight, self.time_estimator_linear_3.bias).squeeze(1)

    def road_time(self, road: Tensor) -> Tensor:
        """The time head's summand of each road: [n, h] -> [n]."""
        weight = self.time_estimator_linear_3.weight[:, TIME_WIDTH:]
        return F.linear(F.gelu(self.time_estimator_linear_2(road)), weight).squeeze(1)
