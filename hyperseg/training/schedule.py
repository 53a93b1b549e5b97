"""The learning rate of each step, in closed form: it depends on nothing but the step."""

from hyperseg.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of the step after ``step`` completed ones.

    It is ``lr * (1 - t / T) ** power`` with t of T units completed (SPEC A.3), so the last step still has a positive
    rate; past the end it is 0. With a warm-up of w steps, step s < w is multiplied by ``(s + 1) / w``.
    """
    schedule = config.schedule
    unit = config.steps_per_epoch if schedule.unit == "epoch" else 1
    done, total = step // unit, -(-config.steps // unit)
    left = max(0.0, 1 - done / total)
    warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    return config.optimizer.lr * left**schedule.power * warm
