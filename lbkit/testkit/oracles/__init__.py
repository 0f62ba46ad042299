"""What notices that it matters which replica answers, beside the suite's own assertions."""
