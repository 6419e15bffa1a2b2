"""Post-training quantization for SpeechBrain."""
