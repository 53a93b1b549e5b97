"""Networks for others: sent to the Hugging Face Hub (``upload.py``) with a model card (``card.py``)."""

from hyperseg.publish.card import PublishError, check_evaluation, model_card, read_evaluation
from hyperseg.publish.upload import Pushed, push

__all__ = ["PublishError", "Pushed", "check_evaluation", "model_card", "push", "read_evaluation"]
