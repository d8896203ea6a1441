// The name holds a hash of the content, so browsers may keep it for ever.
document.getElementById("greeting").textContent = "This line was written by a script.";
