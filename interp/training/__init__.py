"""Training: ``transformers.Trainer`` and PEFT behind one function; runs are kept by content and resumed."""

from interp.recipes.training import LoRA, TrainingRecipe
from interp.training.adapters import merged
from interp.training.rows import conversation_rows
from interp.training.running import TrainedRun, train

__all__ = ["LoRA", "TrainedRun", "TrainingRecipe", "conversation_rows", "merged", "train"]
