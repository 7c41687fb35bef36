"""Questions, figures and the bodies of the jobs that ask a federation."""
