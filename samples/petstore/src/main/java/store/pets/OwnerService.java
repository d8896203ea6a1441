package store.pets;

import java.util.List;
import org.springframework.cache.annotation.CacheEvict;
import org.springframework.cache.annotation.Cacheable;
import org.springframework.stereotype.Service;
import org.springframework.transaction.annotation.Transactional;

@Service
@Transactional
class OwnerService {
    private final Owners owners;

    OwnerService(Owners owners) {
        this.owners = owners;
    }

    @Transactional(readOnly = true)
    @Cacheable("owners")
    public List<Owner> find(String part) {
        return owners.findByNameContainingIgnoreCase(part);
    }

    @Transactional(readOnly = true)
    @Cacheable("kinds")
    public List<String> kinds() {
        return owners.kinds();
    }

    @CacheEvict(cacheNames = {"owners", "kinds"}, allEntries = true)
    public Owner save(Owner owner) {
        return owners.save(owner);
    }
}
