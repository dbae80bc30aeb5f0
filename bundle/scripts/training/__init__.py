"""What a trainer needs beside MONAI's handlers: checkpoints, curves, the schedule, and care for bad numbers."""
