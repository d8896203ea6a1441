package store.pets;

import com.google.gson.Gson;
import jakarta.servlet.annotation.WebServlet;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.List;
import java.util.Map;

/** Answers with the pets it knows, and says which version it is. */
@WebServlet(urlPatterns = {"", "/pets"})
public class PetsServlet extends HttpServlet {
    private static final List<Map<String, String>> PETS =
            List.of(Map.of("name", "Byron", "kind", "cat"), Map.of("name", "Moth", "kind", "moth"));

    @Override
    protected void doGet(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        response.setHeader("X-Version", Version.current());
        response.setContentType("application/json;charset=UTF-8");
        response.getWriter().println(new Gson().toJson(PETS));
    }
}
