"""Destination-Oriented Navigator (HOSER, section 4.3): scores and travel times of the candidates."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Prediction
from models.config import NavigatorConfig

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
        logits = self._logits(trajectory_embedding, destination_zone_embedding, road_embedding, candidate_row, batch)
        of_step, of_road = self._time_parts(trajectory_embedding, road_embedding)
        time_pred = of_step.index_select(0, batch.step_of_candidate) + of_road.index_select(0, candidate_row)
        return Prediction(logits, time_pred)

    def _logits(
        self, trajectory: Tensor, destination: Tensor, road: Tensor, candidate_row: Tensor, batch: Batch
    ) -> Tensor:
        h = road.shape[1]
        q_trajectory, q_destination = self.q_proj.weight.split([2 * h, h], dim=1)
        k_road, k_distance, k_angle = self.k_proj.weight.split(h, dim=1)
        to_distance, to_angle = self.metric_distance_proj, self.metric_angle_proj

        q = F.linear(trajectory, q_trajectory)
        q = q + F.linear(destination, q_destination).index_select(0, batch.trip_of_step)
        constant = k_distance @ to_distance.bias + k_angle @ to_angle.bias
        of_road = F.linear(road, k_road) + constant
        hidden = q.index_select(0, batch.step_of_candidate) + of_road.index_select(0, candidate_row)
        hidden = hidden + batch.metric_distance.unsqueeze(1) * (k_distance @ to_distance.weight).T
        hidden = hidden + batch.metric_angle.unsqueeze(1) * (k_angle @ to_angle.weight).T
        return self.v_proj(hidden.tanh()).squeeze(1)

    def _time_parts(self, trajectory: Tensor, road: Tensor) -> tuple[Tensor, Tensor]:
        """The time head's summand of each step [S] and of each road [n]."""
        of_step, of_road = self.time_estimator_linear_3.weight.split(TIME_WIDTH, dim=1)
        bias = self.time_estimator_linear_3.bias
        step = F.linear(F.gelu(self.time_estimator_linear_1(trajectory)), of_step, bias)
        return step.squeeze(1), F.linear(F.gelu(self.time_estimator_linear_2(road)), of_road).squeeze(1)
