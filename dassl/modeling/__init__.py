"""Small operations that trainers written for Dassl import; networks come from torchvision (dassl.engine.SimpleNet)."""
