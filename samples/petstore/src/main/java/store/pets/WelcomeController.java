package store.pets;

import org.springframework.stereotype.Controller;
import org.springframework.ui.Model;
import org.springframework.web.bind.annotation.GetMapping;

@Controller
class WelcomeController {
    private final OwnerService owners;

    WelcomeController(OwnerService owners) {
        this.owners = owners;
    }

    @GetMapping("/")
    String welcome(Model model) {
        model.addAttribute("version", Version.current());
        model.addAttribute("owners", owners.find(""));
        return "welcome";
    }
}
