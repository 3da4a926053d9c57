"""Groups, advantages, the step-level GRPO trainer, the warm start and the demo."""
