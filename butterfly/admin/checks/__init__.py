"""What ``diagnose`` looks at: one file per subject, each look returns findings."""
