package store.pets;

import jakarta.validation.Valid;
import java.util.List;
import org.springframework.http.HttpStatus;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.ResponseStatus;
import org.springframework.web.bind.annotation.RestController;

@RestController
@RequestMapping("/api")
class OwnerController {
    private final OwnerService owners;

    OwnerController(OwnerService owners) {
        this.owners = owners;
    }

    @GetMapping("/owners")
    List<Owner> owners(@RequestParam(defaultValue = "") String name) {
        return owners.find(name);
    }

    @GetMapping("/kinds")
    List<String> kinds() {
        return owners.kinds();
    }

    @PostMapping("/owners")
    @ResponseStatus(HttpStatus.CREATED)
    Owner add(@Valid @RequestBody Owner owner) {
        return owners.save(owner);
    }
}
