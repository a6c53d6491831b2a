"""The equations of diffusion and nothing else: schedules, the loss, guidance and samplers.

Notation of Ho et al. 2020: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t = 0 .. T - 1, where a
larger t is noisier. Images are in [-1, 1]. Shapes: B batch, C channels, H x W pixels, T noise levels.
"""
