"""The smallest pixel environments: a square that goes where it is pushed, and pure noise."""

import gymnasium as gym
import numpy as np
import torch

import envs

SIZE = 48


class Square(envs.BatchedEnv):
    """A white square is pushed about; reward 1 - distance to the middle. `noise`: nothing is seen.

    Args:
        num_envs: N.
        noise: observations are noise, new in every step, whatever happens.
        ends: the episode terminates at the right wall.
        speed: largest move in a step; half of the picture is 1.
    """

    max_episode_steps = 20

    def __init__(self, num_envs=4, noise=False, ends=False, seed=0, speed=0.4):
        image = gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
        super().__init__(num_envs, image, gym.spaces.Box(-1.0, 1.0, (2,)), "cpu", seed)
        self.noise, self.ends, self.speed = noise, ends, speed
        self.position = torch.zeros(num_envs, 2)
        self.static = torch.zeros(num_envs, 3 * SIZE * SIZE)

    def _draw(self):
        if self.noise:
            self.static = self.rng.uniform(3 * SIZE * SIZE)

    def _begin(self, mask):
        start = self.rng.uniform(2, low=-0.5, high=0.5)
        self.position = torch.where(mask[:, None], start, self.position)
        before = self.static
        self._draw()
        self.static = torch.where(mask[:, None], self.static, before)

    def _advance(self, action):
        self.position = (self.position + self.speed * action).clamp(-1, 1)
        self._draw()
        reward = 1 - self.position.norm(dim=-1)
        terminated = (self.position[:, 0] >= 1) & self.ends
        return reward, terminated, {"state": self.position.clone()}

    def _observe(self):
        if self.noise:
            return (self.static * 255).to(torch.uint8).view(-1, 3, SIZE, SIZE)
        grid = torch.arange(SIZE).expand(self.num_envs, SIZE)
        centre = ((self.position + 1) / 2 * (SIZE - 8) + 4)[..., None]
        x, y = ((grid - centre[:, i]).abs() < 4 for i in range(2))
        image = (y[:, :, None] & x[:, None, :])[:, None].expand(-1, 3, -1, -1)
        return image.to(torch.uint8) * 255

    def _state(self):
        return {"position": self.position, "static": self.static}
